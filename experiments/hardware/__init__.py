"""Makes files of conf/hardware from operator tables and measured iterations."""
