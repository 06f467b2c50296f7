"""Speed and accuracy against peers: `python -m benchmarks [NAME ...] [--gate] [--quick]`.

A file bench_<name>.py or accuracy_<name>.py is found by its name; it holds `measure(options)`, a generator of `Metric`.
"""
