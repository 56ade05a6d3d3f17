"""One class for each kind of dataset, see `trainer.data.dataset.Source`; trainer.data.registry lists them by name."""
