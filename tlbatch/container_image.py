"""Build the image for a site's container runtime from an exported container, with its SHA-256 beside it.

podman build --tag tlbatch . && podman export --output tlbatch.tar $(podman create tlbatch)     (or docker)
python -m tlbatch.container_image tlbatch.tar charliecloud:tlbatch.sqfs
"""

from collections.abc import Sequence
from pathlib import Path

from tlbatch.cluster.image import make_image
from tlbatch.core.cli import command_parser, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m tlbatch.container_image ARCHIVE RUNTIME:IMAGE``."""
    parser = command_parser("container_image", __doc__)
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="tar file of podman export or docker export")
    parser.add_argument(
        "container", metavar="RUNTIME:IMAGE", help="as slurm.container: charliecloud:FILE.sqfs, apptainer:FILE.sif, ..."
    )
    options = parser.parse_args(arguments)
    run_command(lambda: make_image(options.archive, options.container))


if __name__ == "__main__":
    main()
