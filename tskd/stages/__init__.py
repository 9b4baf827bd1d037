"""The five verbs, each a frozen dataclass of settings called on records. They know nothing of each other."""
