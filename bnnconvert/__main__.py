"""`python -m bnnconvert`, which `accelerate launch -m` and `torchrun -m` need."""

from bnnconvert.cli import main

main()
