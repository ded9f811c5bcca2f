"""`mallowspo new NAME --pairs FILE`: an experiment's file for a user's own pairs, sized for this machine.

look         what the file holds: rows, pairs, prompts, tokens
size         how many of them fit into the minutes that are given, by the same plan as `mallowspo plan`
command      the command: looks, sizes, writes config/experiments/NAME.yaml, and says what to type next
"""
