"""`python -m hf_vit_family` is the command `vit-family`."""

from vit_family_launcher import main

if __name__ == "__main__":
    raise SystemExit(main())
