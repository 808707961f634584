"""What `ray submit cluster.yaml sweep.py` ships to the head: `scrimp sweep` and nothing more."""

from scrimp_platform.cli import main, sweep_command

if __name__ == "__main__":
    main(command=sweep_command)
