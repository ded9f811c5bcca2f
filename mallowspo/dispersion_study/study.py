"""The study of dispersion estimates: known rankings, known token laws, people's votes."""

import logging
from pathlib import Path

import pandas as pd

from mallowspo.dispersion_study import figures, people, rankings, tokens, words
from mallowspo.dispersion_study.association import RankCorrelation
from mallowspo.dispersion_study.people import Votes
from mallowspo.dispersion_study.settings import DispersionStudy, find, variable
from mallowspo.errors import InputError
from mallowspo.files import sha256_file, write_parquet
from mallowspo.layout import Layout
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.report.words import count, plural
from mallowspo.scoring import Scorer
from mallowspo.studies.result import Section, StudyResult

logger = logging.getLogger(__name__)

Scored = list[tuple[Votes, dict[str, RankCorrelation]]]


def run(settings: DispersionStudy, layout: Layout, model_folder: Path | None) -> StudyResult:
    """All three parts; the third for the files of votes that are there.

    Raises:
        InputError: a file of votes is broken, or named without a variable and missing.
    """
    voted = score_votes(settings, model_folder)
    table = rankings.simulate(settings.rankings, settings.seeds, settings.seed)
    summary = rankings.summarise(table, settings.statistics, settings.seed)
    exact = rankings.exact_summary(settings.rankings)
    conditions = list(tokens.conditions(settings.chain, settings.seed))
    token_summary = pd.concat(
        [tokens.summarise(condition, settings.statistics, settings.seed) for condition in conditions], ignore_index=True
    )
    differ = next(condition for condition in conditions if condition.name == tokens.DIFFER)
    for votes, _ in voted:
        write_parquet(layout.tables / f"people_{votes.name}_pairs.parquet", votes.table)
    sections = [
        _ranking_section(settings, layout, table, summary, exact),
        _token_section(settings, layout, differ, token_summary),
        *(_people_section(settings, layout, votes, found) for votes, found in voted),
    ]
    left_out = settings.left_out()
    if left_out:
        sections.append(_left_out_section(left_out, layout.experiment))
    return StudyResult(
        findings=[
            words.headline(voted, token_summary, 1 - settings.statistics.confidence),
            *(words.implication(votes, found, 1 - settings.statistics.confidence) for votes, found in voted),
            *words.ranking_findings(summary, exact),
            *words.token_findings(token_summary),
            *(f"Not run: {source} ({reason})." for source, reason in left_out.items()),
        ],
        cautions=_cautions(settings, voted),
        sections=sections,
        numbers=words.numbers(summary, token_summary, voted),
    )


def score_votes(settings: DispersionStudy, model_folder: Path | None) -> Scored:
    """Part (c) for each file that is there; those that are not are told on the terminal."""
    for warning in settings.warnings():
        logger.warning(warning)
    files = _files_of_votes(settings)
    if not files:
        return []
    if model_folder is None:
        raise InputError("model: missing; people.files need a model that scores their answers")
    device = resolve_device(settings.compute.device)
    scorer = Scorer(load_model(model_folder, device), resolve_precision(settings.model.precision, device))
    tokenizer = load_tokenizer(model_folder)
    scored = []
    for name, path in files.items():
        votes = people.score(scorer, tokenizer, path, name, sha256_file(path), settings.people, settings.seed)
        scored.append((votes, people.correlations(votes, settings.statistics, settings.seed)))
    return scored


def _files_of_votes(settings: DispersionStudy) -> dict[str, Path]:
    """The files that are there, by the name that they have on the page and in the names of figures and tables."""
    files: dict[str, Path] = {}
    for path in map(find, settings.people.files):
        if isinstance(path, str):
            continue
        name = words.slug(path.name.split(".")[0])
        if name in files:
            raise InputError(f"people.files: {files[name]} and {path} would share the name {name}; rename one")
        files[name] = path
    return files


def _ranking_section(
    settings: DispersionStudy, layout: Layout, table: pd.DataFrame, summary: pd.DataFrame, exact: pd.DataFrame
) -> Section:
    chosen = settings.rankings
    percent = f"{settings.statistics.confidence:.0%}"
    return Section(
        title="Known rankings",
        paragraphs=[
            "Annotators' rankings are drawn from Mallows models (Kendall's tau) whose dispersion φ is known, each "
            "prompt with a centre of its own. Two ways to get −log φ back: the paper's form, −log of a normalised "
            "entropy (of the first choice over log n, or of the whole ranking over log n!), and maximum likelihood "
            "with an unknown centre. This is the paper's Figure 3 in spirit only: of that figure we know the caption "
            "(the proposed estimate matches the true dispersion under a Mallows model), so the design, the grid and "
            "the sizes are ours.",
            "Why the entropy form bends: near uniform rankings the entropy falls short of its maximum by the square of "
            "−log φ, while −log φ itself is of first order. So prompts on which people differ much get weights that "
            "are too small, those on which they agree too large ones, whatever the calibrating constant; the order of "
            "the prompts stays right. With few annotators the entropy of the observed frequencies is biased downwards.",
        ],
        panels=figures.rankings(layout, chosen, table, summary, settings.statistics.confidence),
        caption=f"{plural(settings.seeds, 'prompt')} for each of {len(chosen.phis)} values of φ and each cell. The "
        "law itself has no chance in it. How many annotators: bands are "
        f"{percent} intervals from {settings.statistics.resamples:,} resamples of prompts. Estimates (at most "
        f"{chosen.cap:g}): mean, and the range of {percent} of the prompts; calibrated, the entropy forms are scaled "
        "so that their mean is the true one. Dotted: equal. No test.",
        table=words.ranking_table(summary, exact),
    )


def _token_section(
    settings: DispersionStudy, layout: Layout, condition: tokens.Condition, summary: pd.DataFrame
) -> Section:
    chain = settings.chain
    percent = f"{settings.statistics.confidence:.0%}"
    return Section(
        title="Known token laws",
        paragraphs=[
            f"The language model is a second-order Markov chain over {chain.words} words and an end token, so that the "
            "entropy of every next token, and by the chain rule of the whole answer, is known exactly. Each prompt has "
            "its own temperature and, in two of three conditions, its own expected length. Two truths are compared "
            "with: the entropy of the whole answer H(Y | x), which is what a law over answers has, and the entropy a "
            "token, H(Y | x) over the expected length and log V, which is what the official code estimates.",
            "Assumptions: a pair's answers are drawn from the model itself (off-policy: at "
            f"{chain.off_policy:g} times its temperature); the prompt's own words are drawn at a temperature whose "
            f"logarithm correlates {chain.prompt_correlation:g} with that of the answers, which is all that estimator "
            f"prompt can know; the template's header is {plural(chain.header_tokens, 'token')} without entropy. The "
            "bigram is the model's law given one word and nothing else, averaged over prompts; by prompt, the same law "
            "within each prompt, which no language model hands out.",
        ],
        panels=figures.tokens(layout, condition, summary),
        caption=f"n = {plural(chain.prompts, 'prompt')} with one pair each; above: {condition.name}; estimator "
        f"sampled from {chain.samples} answers. Bars: {percent} intervals from {settings.statistics.resamples:,} "
        "resamples of prompts. No test.",
        table=words.token_table(summary),
    )


def _people_section(
    settings: DispersionStudy, layout: Layout, votes: Votes, found: dict[str, RankCorrelation]
) -> Section:
    statistics, chosen = settings.statistics, settings.people
    voters = (votes.table["votes_a"] + votes.table["votes_b"]).median()
    part = "all" if len(votes.table) == votes.rows else f"a seeded draw of the {votes.rows:,}"
    paragraphs = [
        f"{votes.name} (sha256 {votes.sha256[:12]}…): {plural(len(votes.table), 'pair')}, {part}; {count(voters)} "
        "votes a pair in the median. Truth is the entropy of each pair's votes. The model "
        f"{settings.model.source} reads the prompt and scores both answers, each ended by the end-of-sequence token; "
        f"template {chosen.tokens.template}. Where a row is ChaosNLI's alpha-NLI, the prompt is worded "
        f"“{chosen.wording}”. Chosen is the answer with more votes"
        + (f" (the first in {plural(votes.ties, 'tie')})." if votes.ties else "."),
        "Estimator sampled is left out: it would need answers of the model to each prompt. The two rows of the model's "
        "own choice are no estimators of dispersion; they ask it the voters' question.",
        "What this says of the claim that entropy measures people's disagreement. "
        + words.implication(votes, found, 1 - statistics.confidence),
        *words.people_sentences(votes, found, chosen.effect, statistics.confidence),
    ]
    if votes.undefined:
        paragraphs.append(f"Indices that no token counts for, set to the neutral value: {votes.undefined:,}.")
    return Section(
        title=f"People's votes: {votes.name}",
        paragraphs=paragraphs,
        panels=figures.people(layout, votes, found, chosen.effect),
        caption=f"n = {plural(len(votes.table), 'pair')}. Bars: {statistics.confidence:.0%} intervals from "
        f"{statistics.resamples:,} resamples of pairs; grey: correlations smaller than {chosen.effect:g}. p-values in "
        f"the table: {statistics.permutations:,} permutations of the pairs, two-sided, Holm's correction over all "
        "rows. Dots are pairs, lines the quartiles of the votes' entropy in fifths of the pairs by their index.",
        table=words.people_table(votes, found),
    )


def _left_out_section(left_out: dict[str, str], experiment: str) -> Section:
    folders = " ".join(f"{name}=FOLDER" for name in dict.fromkeys(map(variable, left_out)))
    return Section(
        title="People's votes: not run",
        paragraphs=[
            *(f"{source} was not run: {reason}." for source, reason in left_out.items()),
            "Nothing on this page says anything of these people's votes. To run it, put the file into a folder and "
            f"give the folder's name: {folders} snakemake --cores all --config experiments={experiment}",
        ],
    )


def _cautions(settings: DispersionStudy, voted: Scored) -> list[str]:
    cautions = [
        "Parts one and two test the estimators against models of our own making; they say what an estimate can do, not "
        "what people are like.",
        f"A rank correlation over a grid of φ from {min(settings.rankings.phis):g} to {max(settings.rankings.phis):g} "
        "depends on that grid: a narrower one gives smaller values.",
        f"Where all annotators agree −log φ has no finite estimate; it is set to {settings.rankings.cap:g}, and "
        "counted in the table.",
    ]
    if voted:
        cautions.append(
            f"The votes are on one kind of text each, and the model is one ({settings.model.source}): a null result "
            "here is no proof for larger models or for other questions."
        )
    return cautions
