"""`python -m posegen_ray <command>`: the same as the `posegen` command."""

from posegen_ray.cli import entry

if __name__ == "__main__":
    entry()
