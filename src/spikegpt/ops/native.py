MISSING = "not built yet"
