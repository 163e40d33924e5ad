"""The chat lane against the same decoder in transformers: one by one, in static batches, and under load.

    python -m benchmarks.chat [--model bundled|random25m] [--precision float32|bfloat16] [--rounds N] [--questions N]
                              [--clock cpu|wall] [--write]

    saturation.py   tokens/s: 16 askers, mixed lengths, no gap: `generate` one by one, `generate` in static batches of 16,
                    the lane, and the lane with each chat through one of eight adapters
    load.py         first token: the same Poisson arrivals for both; a static batch takes all who wait and runs to its end;
                    the lane's counts once its word is told
    second.py       the second question about a film: the lane alone and, with the bundled model, the whole engine
    table.py        the section of docs/benchmarks.md

All compute in one thread. `--clock cpu` counts the process's own seconds, for a machine that others use too. The rounds are
interleaved; told are medians of each round's ratio. In float32 every greedy answer of the lane must be the one that
transformers' `generate` gives. transformers runs its own copy of the weights, laid out as it lays them out.
"""
