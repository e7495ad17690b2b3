"""Methods we call but did not write. Each builds a variant: build(base, spec, out)."""
