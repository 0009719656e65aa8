"""From operator tables and measured iterations to files of conf/hardware."""
