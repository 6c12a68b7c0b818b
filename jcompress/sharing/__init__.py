"""Weights that share their values: codebooks, tied blocks, hashed weights."""

from jcompress.sharing.clustering import Cluster as Cluster
from jcompress.sharing.clustering import Start as Start
from jcompress.sharing.clustering import cluster as cluster
from jcompress.sharing.clustering import make_tables as make_tables
from jcompress.sharing.codebooks import Tables as Tables
from jcompress.sharing.codebooks import fake_cluster as fake_cluster
from jcompress.sharing.codebooks import to_codebooks as to_codebooks
from jcompress.sharing.hashing import Hash as Hash
from jcompress.sharing.hashing import hash_weights as hash_weights
from jcompress.sharing.ties import TieBlocks as TieBlocks
from jcompress.sharing.ties import TieLayers as TieLayers
from jcompress.sharing.tying import Initial as Initial
from jcompress.sharing.tying import tie as tie
from jcompress.sharing.tying import tied as tied
from jcompress.sharing.tying import untie as untie
from jcompress.sharing.vectors import ClusterVectors as ClusterVectors
from jcompress.sharing.vectors import cluster_vectors as cluster_vectors
