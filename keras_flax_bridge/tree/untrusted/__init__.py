"""Every string from a file that becomes a name is looked up here, in a table, never along attributes.

`docs/security.md` lists the places. Text that goes out passes `_printable`, text in written source
`migrate.code`.
"""

from keras_flax_bridge.tree.untrusted.configs import require_safe as require_safe
from keras_flax_bridge.tree.untrusted.names import REGISTERED as REGISTERED
from keras_flax_bridge.tree.untrusted.names import dtype as dtype
from keras_flax_bridge.tree.untrusted.names import flax_class as flax_class
from keras_flax_bridge.tree.untrusted.names import flax_maker as flax_maker
from keras_flax_bridge.tree.untrusted.names import flax_name as flax_name
from keras_flax_bridge.tree.untrusted.names import flax_thing as flax_thing
from keras_flax_bridge.tree.untrusted.names import method as method
from keras_flax_bridge.tree.untrusted.names import optax_factory as optax_factory
from keras_flax_bridge.tree.untrusted.names import registered as registered
from keras_flax_bridge.tree.untrusted.tables import DTYPES as DTYPES
