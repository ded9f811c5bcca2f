"""Studies: experiments that are no comparison of trained language models, each one module and one page."""
