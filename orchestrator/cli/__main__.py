"""`python -m orchestrator.cli`: `nml-orch`, where no other `orchestrator` comes first."""

from nml_orch import main

main()
