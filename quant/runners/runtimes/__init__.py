"""Runtimes: each module here opens the model folders whose manifest names it, by a class `Runner(folder, options)` that keeps
quant.runners.Runner, and imports what it needs beforehand by a function `import_libraries(folder)`."""
