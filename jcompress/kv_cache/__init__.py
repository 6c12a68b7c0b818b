"""Keys and values of a decoder's attention in 8 or 4 bits, and attention over them."""

from jcompress.kv_cache.attention import attend as attend
from jcompress.kv_cache.cache import KVCache as KVCache
from jcompress.kv_cache.cache import Stored as Stored
from jcompress.kv_cache.cache import init as init
from jcompress.kv_cache.cache import read as read
from jcompress.kv_cache.cache import update as update
from jcompress.kv_cache.channels import fit_key_scales as fit_key_scales
from jcompress.kv_cache.spec import CacheFormat as CacheFormat
from jcompress.kv_cache.spec import Vectors as Vectors
