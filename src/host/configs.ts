/** The configs as bytes [B16]; a container without a firewall config has an empty one [B8]. */
export function decodeConfigs(params: {
  'guest-config': string;
  'firewall-config'?: string | undefined;
}): { guestConfig: Uint8Array; firewallConfig?: Uint8Array } {
  const firewall = params['firewall-config'];
  return {
    guestConfig: Buffer.from(params['guest-config'], 'base64'),
    ...(firewall && { firewallConfig: Buffer.from(firewall, 'base64') }),
  };
}
