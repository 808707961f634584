"""What `ray submit cluster.yaml sweep.py` ships to the head: `scrimp sweep` and nothing more."""

import sys

from scrimp_platform.cli.main import main, rejoin_values, sweep_command

if __name__ == "__main__":
    main(rejoin_values(sys.argv[1:]), sweep_command)
