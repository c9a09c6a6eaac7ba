"""Export the model of a finished run as a folder that can classify images anywhere.

The model in each format is compared with the run's own predictions on some of its test images.
"""

from pathlib import Path

from tlbatch.core.cli import command_parser, run_command
from tlbatch.deploy.export import export_run
from tlbatch.runs.paths import RunPaths


def main() -> None:
    """Run ``python -m tlbatch.export RUN FOLDER``."""
    parser = command_parser("export", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, as python -m tlbatch.submit printed it")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write the model; must not exist")
    options = parser.parse_args()

    def work() -> int:
        for form in export_run(RunPaths(options.run), options.folder).forms.values():
            found = "not computed" if form.difference is None else f"{form.difference:.1e}"
            print(f"{form.file:<18} {f'left out: {form.left_out}' if form.left_out else f'largest difference {found}'}")
        print(options.folder)
        return 0

    run_command(work)


if __name__ == "__main__":
    main()
