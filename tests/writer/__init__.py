"""The tests of the backends: one suite, which every store has to pass, and what is special in each."""
