/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_PFNCACHE_MAP_H__
#define __KVM_PFNCACHE_MAP_H__ 1

#include <linux/kvm_types.h>
#include <linux/llist.h>
#include <linux/mm_types.h>

/* The maximum number of page frames of a mapping. */
#define GPC_MAP_MAX	4

/**
 * struct gpc_map - page frames mapped outside the direct map
 * @node: links mappings that are to be unmapped
 * @addr: the kernel address of the first frame
 * @pfn: the first frame
 * @is_memremapped: whether by memremap(), else by vmap() or vmap_pfn()
 */
struct gpc_map {
	struct llist_node node;
	void *addr;
	kvm_pfn_t pfn;
	bool is_memremapped;
};

void *gpc_direct_address(const kvm_pfn_t *pfn, struct page *const *page, unsigned int nr);
struct gpc_map *gpc_map(const kvm_pfn_t *pfn, struct page *const *page, unsigned int nr);
void gpc_unmap(struct gpc_map *map);

#endif
