"""`python -m orchestrator.cli`: the same as `nml-orch`."""

from orchestrator.cli import main

main()
