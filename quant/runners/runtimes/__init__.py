"""Runtimes: each module here opens the model folders whose manifest names it. It has a class `Runner(folder, options)`, which
implements quant.runners.Runner, and a function `import_libraries(folder)`, which imports its libraries in advance."""
