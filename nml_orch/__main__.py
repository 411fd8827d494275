"""`python -m nml_orch`: the same as `nml-orch`."""

from nml_orch import main

main()
