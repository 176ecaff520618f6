"""The tasks, one file each; see hftune.task for the contract."""
