"""python -m experiments, also installed as `haar`."""

from experiments.engine.cli import main

if __name__ == "__main__":
    main()
