export { BackupError } from '../protocol/errors.ts';
export {
  changeable,
  core,
  defineProvider,
  fixed,
  type ProviderDefinition,
  secret,
} from './define.ts';
export { type Manifest, manifestOf } from './manifest.ts';
export type * from './provider.ts';
