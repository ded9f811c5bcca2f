"""A judge of one's own: a reward model trained on preference pairs by Bradley and Terry's law, and measured."""
