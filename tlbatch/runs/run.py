"""A run: the resolved job together with the paths of its folder."""

from dataclasses import dataclass
from pathlib import Path

from tlbatch.config.job import Job
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Marker, RunRecord, load_record
from tlbatch.runs.stages import TABLE, StageName, stages_of
from tlbatch.runs.workspace import SetPaths, set_folder

_MISSING = "run shard first: python -m tlbatch.shard RUN"


@dataclass(frozen=True)
class Run:
    """The record of a run, and the paths of its folder."""

    record: RunRecord
    paths: RunPaths

    @staticmethod
    def load(folder: Path) -> "Run":
        """Read a run, with the choices of strategy auto filled in."""
        return Run(RunPaths(folder).load(), RunPaths(folder))

    @staticmethod
    def load_submitted(folder: Path) -> "Run":
        """Read a run as it was submitted."""
        return Run(RunPaths(folder).load_submitted(), RunPaths(folder))

    @property
    def job(self) -> Job:
        """The resolved job."""
        return self.record.job

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.record.run

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.paths.folder

    @property
    def stages_left(self) -> tuple[StageName, ...]:
        """The stages that have not finished, in order."""
        left = {stage.name for stage in TABLE if stage.scratch and (self.folder / stage.scratch).exists()}
        return tuple(stage for stage in stages_of(self.job) if stage in left or not self.paths.marker(stage).exists())

    @property
    def set_paths(self) -> SetPaths:
        """The paths of the set that the run's stage shard made or found; it must have finished."""
        done = load_record(Marker, self.paths.marker("shard"), missing=_MISSING)
        return SetPaths(set_folder(self.job), done.outputs["index"])

    def load_manifest(self) -> Manifest:
        """Read the manifest of the run's set."""
        return load_record(Manifest, self.set_paths.manifest, missing=_MISSING)
