"""The site: ``sphinx-build -W --keep-going -c docs . build/site``.

The source folder is the repository's root, so that pages of results and notebooks are included where they stand.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

project = "mosaic"
root_doc = "docs/index"
include_patterns = ["docs/**.md", "results/**.md", "notebooks/*.ipynb"]
exclude_patterns = [".*", "build", "checkpoints", "results/runs", "results/multirun", "results/measured", "results/gpu"]
suppress_warnings = ["myst.header"]  # measured pages begin below the first level
extensions = ["myst_nb", "sphinx.ext.autodoc", "reference"]

html_theme = "furo"
html_title = "mosaic"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["index.html"]  # leads from the site's root to its front page

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the committed notebooks are executed, and a test holds them to it
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
smartquotes = False  # they make a dash of the two hyphens of an option
