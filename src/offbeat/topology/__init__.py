"""Topologies: who may send to whom at each round, and with which weights.

A topology is pure data: it can be built, compared, printed and tested with nothing running. Methods
read it through `neighbors`; `offbeat.mixing` turns it into mixing matrices.
"""

from __future__ import annotations

from .base import Topology as Topology
from .exponential import Exponential as Exponential
from .exponential import OnePeerExponential as OnePeerExponential
from .generated import RandomRegular as RandomRegular
from .generated import SmallWorld as SmallWorld
from .listed import EdgeList as EdgeList
from .listed import Graph as Graph
from .listed import WeightedGraph as WeightedGraph
from .listed import node_order as node_order
from .listed import require_column_stochastic as require_column_stochastic
from .matching import BipartiteMatching as BipartiteMatching
from .matching import RandomMatching as RandomMatching
from .neighborhood import Neighbors as Neighbors
from .neighborhood import neighbors as neighbors
from .regular import Complete as Complete
from .regular import DirectedRing as DirectedRing
from .regular import Hypercube as Hypercube
from .regular import Line as Line
from .regular import Ring as Ring
from .regular import Star as Star
from .regular import Torus as Torus
from .regular import Tree as Tree
from .time_varying import TimeVarying as TimeVarying
from .weights import MetropolisHastings as MetropolisHastings
from .weights import SelfWeight as SelfWeight

TOPOLOGIES: dict[str, type[Topology]] = {
    topology.__name__: topology
    for topology in (
        Ring,
        DirectedRing,
        Line,
        Star,
        Tree,
        Torus,
        Hypercube,
        Exponential,
        OnePeerExponential,
        Complete,
        SmallWorld,
        RandomRegular,
        BipartiteMatching,
        RandomMatching,
        TimeVarying,
        Graph,
        WeightedGraph,
        EdgeList,
        MetropolisHastings,
        SelfWeight,
    )
}
