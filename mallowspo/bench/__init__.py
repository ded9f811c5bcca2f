"""How fast and how large: the engine against TRL, against a plain forward, and against its own size.

`commands` are what a person runs. Each measurement is a process of its own (`worker`, started by `processes`), so that
none sees another's memory or caches. `lengths` and `data` make the pairs, `ours` and `with_trl` train on them, `clock`
and `operations` measure; `training`, `comparison`, `reference`, `generation` and `scaling` put the figures together.
"""
