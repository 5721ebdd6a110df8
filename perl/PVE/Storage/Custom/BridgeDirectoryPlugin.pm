# SPDX-License-Identifier: AGPL-3.0-or-later
package PVE::Storage::Custom::BridgeDirectoryPlugin;
use v5.36;
use base qw(PVE::BackupBridge::StoragePlugin);
sub type { return 'bridge-dir' }
1;
