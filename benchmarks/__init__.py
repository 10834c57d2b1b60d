"""How fast it is (benchmarks.speed) and whether the paper's claims hold (benchmarks.reproduce): pages of results/."""
