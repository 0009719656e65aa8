"""What studies share: a study is a declared sweep, what is measured at a point, a page and figures."""
