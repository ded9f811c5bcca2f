"""Revisions of the Hugging Face hub: a branch or a tag can move, a commit cannot."""

import logging
import re
from typing import Literal

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def commit_of(name: str, revision: str, kind: Literal["model", "dataset"]) -> str:
    """The commit that a revision is: itself, or what the hub says today, with a warning that it can move.

    Raises:
        OSError: the hub cannot be reached, or has no such repository or revision.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        commit = str(HfApi().repo_info(name, revision=revision, repo_type=kind).sha)
    except (HTTPError, HFValidationError) as error:
        raise OSError(str(error).strip() or type(error).__name__) from None
    logger.warning("hub:%s@%s can move; it is %s today: write @%s into the settings", name, revision, commit, commit)
    return commit
