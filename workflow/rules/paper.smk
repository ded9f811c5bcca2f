# The page of the paper's claims: `snakemake --cores all paper`, with --config scale=paper for the paper's own models.
# Every experiment of the scale comes before it. PAPER is empty unless the page is asked for.


# It has no file of its own, so that an experiment whose results were removed is run again.
rule paper:
    input:
        PAGE_OF_THE_PAPER / "index.html",
        [layout(name).report for name in PAPER],
        [layout(name).tracked for name in PAPER],


rule page_of_the_paper:
    input:
        settings=["config/paper.yaml", "config/published.yaml"],
        pages=[layout(name).report for name in PAPER],
        records=[layout(name).tracked for name in PAPER],
    output:
        page=report(PAGE_OF_THE_PAPER / "index.html", caption="../report/paper.rst", category="Paper"),
        tables=directory(PAGE_OF_THE_PAPER / "tables"),
        figures=directory(PAGE_OF_THE_PAPER / "figures"),
    log:
        f"{RESULTS}/logs/paper.log",
    benchmark:
        f"{RESULTS}/benchmarks/paper.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        call=["--results", RESULTS, "--scale", WORKFLOW.scale],
        depends=code_digest("paper"),
    shell:
        "mallowspo paper {params.call:q} > {log:q} 2>&1"
