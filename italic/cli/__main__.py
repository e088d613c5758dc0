"""`python -m italic.cli`."""

from italic.cli import main

raise SystemExit(main())
