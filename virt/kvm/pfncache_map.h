/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_PFNCACHE_MAP_H__
#define __KVM_PFNCACHE_MAP_H__ 1

#include <linux/kvm_types.h>
#include <linux/mm_types.h>

/* The most page frames that are mapped at once. */
#define GPC_MAP_MAX	4

enum gpc_map_kind {
	GPC_MAP_DIRECT,
	GPC_MAP_VMAP,
	GPC_MAP_MEMREMAP,
	/* By the memory type that userspace's mapping had. */
	GPC_MAP_VMAP_PFN,
};

/**
 * struct gpc_map - page frames at one kernel address
 * @addr: the kernel address of the first frame, NULL if none are mapped
 * @kind: how they are mapped
 * @nr: the number of frames
 * @pfn: the frames, in the order in which they are mapped
 */
struct gpc_map {
	void *addr;
	enum gpc_map_kind kind;
	unsigned int nr;
	kvm_pfn_t pfn[GPC_MAP_MAX];
};

/* Whether @map maps these frames, and does so by the memory type that they have. */
static inline bool gpc_is_map_of(const struct gpc_map *map, const kvm_pfn_t *pfn, unsigned int nr)
{
	unsigned int i;

	if (!map->addr || map->nr != nr || map->kind == GPC_MAP_VMAP_PFN)
		return false;

	for (i = 0; i < nr; i++) {
		if (map->pfn[i] != pfn[i])
			return false;
	}

	return true;
}

int gpc_map(struct gpc_map *map, const kvm_pfn_t *pfn, struct page *const *page,
	    unsigned int nr);
void gpc_unmap(struct gpc_map *map);

#endif
