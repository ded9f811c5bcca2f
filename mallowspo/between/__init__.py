"""`mallowspo compare FOLDER FOLDER`: two finished experiments against each other, from their files alone."""
