"""The study "does the estimate mean anything?": each dispersion estimate against a truth that is known or was voted."""
