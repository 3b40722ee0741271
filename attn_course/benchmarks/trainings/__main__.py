"""``python -m attn_course.benchmarks.trainings``."""

import sys

from attn_course.benchmarks.trainings import main

sys.exit(main())
