"""Any transformer that `transformers` loads, as segments and sites."""
