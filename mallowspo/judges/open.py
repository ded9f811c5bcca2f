"""From a judge's name to the judge.

Apart from `judge`, which every reward reads: what samples and scores by a reward does not depend on the other kinds.
"""

from mallowspo.errors import InputError
from mallowspo.judges.judge import Judge
from mallowspo.judges.names import check_judge_name
from mallowspo.judges.settings import JudgeSettings


def open_judge(name: str, settings: JudgeSettings | None = None) -> Judge:
    """The judge behind a name; models are loaded, endpoints are not yet asked.

    Raises:
        InputError: an unknown name, or what the name points at is not there.
    """
    settings = settings or JudgeSettings()
    try:
        kind = check_judge_name(name).partition(":")[0]
    except ValueError as error:
        raise InputError(str(error)) from None
    # Imported here: a reward needs neither torch nor an HTTP client.
    if kind == "openai":
        from mallowspo.judges.endpoint import EndpointJudge

        return EndpointJudge(name, settings)
    if kind == "logprob":
        from mallowspo.judges.log_probability import LogProbabilityJudge

        return LogProbabilityJudge(name, settings)
    if kind == "pairwise-table":
        from mallowspo.judges.stored import TableJudge

        return TableJudge(name)
    from mallowspo.judges.reward import RewardJudge

    return RewardJudge(name)
