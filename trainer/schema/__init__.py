"""One module an artefact: its Arrow schema or dataclass, and its version. Imports nothing of trainer but `errors`."""
