# From preference pairs to a comparison: a table of contents. Each stage has a file below, in the order of the data;
# paths and run lists are in common.smk; what an experiment is stands in config/experiments/*.yaml.


configfile: "config/config.yaml"


# Used only with --software-deployment-method apptainer; built from workflow/container.def.
container: "mallowspo.sif"


include: "workflow/rules/common.smk"
include: "workflow/rules/pairs.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/studies.smk"
include: "workflow/rules/paper.smk"


rule all:
    input:
        [layout(name).report for name in ASKED],
        [layout(name).tracked for name in ASKED],
