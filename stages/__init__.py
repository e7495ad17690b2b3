"""The steps of the pipeline, one verb each: `python -m stages.quantize int4` is what DVC runs."""
