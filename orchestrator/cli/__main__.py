"""`python -m orchestrator.cli` is `nml-orch`, unless another `orchestrator` is found first."""

from nml_orch import main

main()
