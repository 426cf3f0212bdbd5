"""Verdicts on claims: a rule written before the runs, and what a program makes of their results."""

from .judge import Judged as Judged
from .judge import Verdict as Verdict
from .judge import judge as judge
from .judge import planned as planned
from .measures import curves as curves
from .measures import measured as measured
from .record import Record as Record
from .record import read_record as read_record
from .record import write_record as write_record
from .rule import Rule as Rule
